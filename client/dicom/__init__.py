"""DICOM in: a folder or PACS export to NIfTI volumes, a manifest and a table that a person can review and edit."""
