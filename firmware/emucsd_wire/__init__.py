"""Wire declarations: every byte layout that crosses between host, drive and transport, declared once."""
