"""Secure aggregation: the server learns sums over sites, no site's own update. The mathematics that both sides share.

Double masking of Bonawitz et al. 2017 ("Practical secure aggregation for privacy-preserving machine learning"), per module
group: a site's update becomes whole numbers (`quantise`), to which it adds a mask of its own and one per other owner of
the group, which cancel in pairs (`masks`, `keys`). Both secrets behind the masks are shared out among all sites
(`shamir`), so that the sum can be unmasked when sites are lost on the way. Nothing here sends or keeps anything.

It holds against a server that keeps to the protocol and looks at all it gets, and up to half of the sites short of a majority
helping it. It does not hold against

- a server that makes up sites or exchanges their keys: it relays them, and no one signs them;
- what a sum tells by itself: `strategy.secure_min` sites is little, and a site that knows its own update knows the rest;
- harmful or mistaken updates: what is masked cannot be looked at, and one wrong share voids a round;
- a void round tried again with other sites, if shares of the first come late: the two sums differ by the updates of the sites
  that differ, which train alike both times (under patient-level privacy they do not: their noise is new).

Losses, scores and counts on the replies are not summed: they travel in the clear, as ever.
"""
