"""How good a vocabulary is, and how safe: COCO metrics, thresholds, calibration, retention and false alarms."""
