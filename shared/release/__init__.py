"""The learner's edition: what goes in (`edition`), how it is made (`build`), a proof (`leaks`)."""
