"""The whole cluster in one process and in virtual time, from one seed: any failure is a number that replays it."""
