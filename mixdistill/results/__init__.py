"""What comes out: accuracies, gaps with intervals, figures."""
