"""The store for people and programs: `lorica runs`, the decision page, exports, metrics, alerts."""
