"""A teacher labels web pairs: what that will take, how good labels are by threshold, and the stage over Ray."""
