"""Default policies: plain Python functions, compiled with the firmware. ``emucsd_firmware.policy`` binds them."""
