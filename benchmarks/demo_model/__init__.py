"""How the packaged demo model was made."""
