"""How far a run of stage one is, and how well the device is used."""
