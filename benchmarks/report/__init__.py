"""From records to a page that a person reads: tables of ratios, and pictures."""
