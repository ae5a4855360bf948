"""The agent: what runs on the Linux inside the drive. It joins the tunnel and runs jobs; docs/isp.md."""
