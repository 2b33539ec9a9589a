"""What data set authors share: class pools, episode sampling, safe image decoding, verified archives."""
