"""Public and local data sets into manifests: one file per source, each of which reads one layout and returns `found.Found`.

A source of your own: the YAML of `folder` first; else a function that returns Found, and a command in `commands.ALL`.
"""
