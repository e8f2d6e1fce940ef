"""`medmap-client qc`: artefacts, odd ones out and likely wrong labels of a manifest's volumes; nothing leaves."""
