"""The PEFT methods peft-rag brings along, one a file, each found through the ``peft_rag.methods`` entry points."""
