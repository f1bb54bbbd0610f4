"""The Hydra configuration groups, installed as `dglpipe.conf`."""
