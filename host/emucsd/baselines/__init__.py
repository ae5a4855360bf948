"""The ways to serve a recommendation model that RM-SSD is compared with: on the same flash, in the same virtual time."""
