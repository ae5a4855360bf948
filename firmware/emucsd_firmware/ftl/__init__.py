"""Flash translation layer: page mapping, write buffer, garbage collection, wear, recovery; see docs/policies.md."""
