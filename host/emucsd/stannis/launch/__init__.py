"""`emucsd train`: how a run is started on a computer, in drives' engines and on a testbed's machines, and recorded."""
