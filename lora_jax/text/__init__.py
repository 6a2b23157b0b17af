"""Text, from files and downloads to batches of token ids: what is read, what is built in, and how it is packed."""

from lora_jax.text.documents import Document, read_documents
from lora_jax.text.encoding import encode_document

__all__ = ["Document", "encode_document", "read_documents"]
