"""A machine's life, a file a phase. The only caller of Provider.create and Provider.destroy."""
