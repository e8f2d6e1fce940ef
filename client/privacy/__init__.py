"""Patient-level differential privacy at a site: randomness, per-patient gradients, accounting, and the ledger.

The record is a patient: all volumes, the label and the text of one person, one loss, one clip. What leaves a site after
`ledger.Ledger` has been charged for it is a sum of clipped gradients with noise, and nothing else.
"""
