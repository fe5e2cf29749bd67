"""What the scripts of the checkout and the console command both run."""
