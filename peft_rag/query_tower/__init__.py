"""The query side of the retriever, trained beside the model; the documents' vectors never change."""
