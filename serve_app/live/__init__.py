"""What a service does at the moment: counts of its replicas → rates over a second → snapshot."""
