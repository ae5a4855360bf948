"""A fleet in virtual time: engines by their profiles, links by their occupancy, training steps by their events.

``profiles`` has what is known of an engine and a network, ``fabric`` the links, ``allreduce`` the algorithms over them,
``training`` the steps. Nothing runs for real, so a thousand drives take seconds; the same seed gives the same figures,
bit for bit.
"""
