"""What runs inside an institution: private data, the DP engine, the privacy ledger."""
