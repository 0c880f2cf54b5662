"""The data: captures and their sources, geometry, co-visibility, the scene index with its shards, and batches."""

import cv2

# Frames are decoded by several processes at once, and OpenCV's own thread pool does not survive a fork.
cv2.setNumThreads(0)
