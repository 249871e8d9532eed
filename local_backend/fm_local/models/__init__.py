"""Loading bases and adapters, generating, exporting."""
