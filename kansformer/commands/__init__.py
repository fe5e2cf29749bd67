"""The commands behind both the scripts of the checkout and the console command."""
