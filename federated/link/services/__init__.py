"""What members answer each other over the exchange, as processes: desk, night, conditions."""
