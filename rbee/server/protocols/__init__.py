"""What clients speak. One package per protocol; what several of them share stands beside those."""
