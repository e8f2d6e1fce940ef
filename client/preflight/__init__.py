"""`medmap-client check site.yaml`: whether a hospital can take part, in rows of check, result and remedy; nothing is sent."""
