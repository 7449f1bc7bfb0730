"""`kubectl rbg`: what people look at and turn while a group runs. All API work goes through the kubectl binary."""
