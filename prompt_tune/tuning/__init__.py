"""The method: cache the regions of the images once, then learn context vectors on the cache. Start at `fit`."""
