"""Pages that the server itself serves. They load nothing from elsewhere."""
