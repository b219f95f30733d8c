"""OpenSeeD: segmentation and detection from one open vocabulary (arXiv 2303.08131)."""
