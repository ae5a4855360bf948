"""Ways to serve a recommendation model, RM-SSD and what it is compared with: same flash, same virtual time."""
