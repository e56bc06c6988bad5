"""The application under evaluation: a retrieval assistant, and the material to judge it with.

    from shared.assistant.assistant import Assistant
    from shared.assistant.material import load_documents, load_golden

    answer = Assistant("finance", engine).ask("How much is the Everyday Account a month?")
    print(answer.text, answer.citations)

README.md says where everything comes from, how it is labelled, and how to make it again.
"""
