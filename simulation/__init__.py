"""Virtual hospitals: phantom, partitions, engines, baselines. The only package that imports both sides."""
