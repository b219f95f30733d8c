"""MaskFormer and Mask2Former: a backbone, a pixel decoder, queries, and a fixed list of classes."""
