"""What the labs stand on: models, engine, domains and grading."""
