"""The quality evaluation: what tiling does to pictures, over overlap, halo, window, schedule and couplings.

`tiledattn bench quality` paints the same noise in many ways, measures seams, distance to the untiled run, patch
statistics and repetition with intervals over seeds, and sets them against the compute that each way takes.
"""
