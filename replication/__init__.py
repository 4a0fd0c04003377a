"""What moves bytes between stores: for now the ports every blob store and upload area implements."""
