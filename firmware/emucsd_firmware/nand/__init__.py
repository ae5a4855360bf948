"""The NAND model: how long flash operations take and how often they fail. It knows neither who asked nor any data."""
