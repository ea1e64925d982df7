"""Networks that recognise people."""
