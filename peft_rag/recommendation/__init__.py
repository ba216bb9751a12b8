"""Which method for this data? A short search by successive halving that ends in a ready artefact and says why."""
