"""The scoring application: columns in, columns out."""
