"""Few-shot reconstruction: the images that a released linear head was trained on, from its weights.

Source: Allison, Maciazek and Bourne 2025 (arXiv 2505.14323) and the authors' public code. Whoever
knows the frozen base and how the head is trained, and has other images of the same kind, trains
many shadow heads on them, learns the way from a head's weights back to its images, and goes it from
the released head. What he finds counts only beside what he would find without that head.
"""
