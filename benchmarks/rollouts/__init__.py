"""Roll-outs under load: `embedserve deploy` of one configuration after another."""
