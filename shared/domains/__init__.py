"""Finance, healthcare, climate: data, documents, golden questions, tool worlds."""
