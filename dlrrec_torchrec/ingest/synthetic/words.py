"""Words of the synthetic world: cuisine families with their types and dishes, and sentence templates.

Every one of the 179 category types belongs to exactly one family. Dishes are grouped by the vessel that they
are served in, because photos show the vessel.
"""

from __future__ import annotations

# family -> (types, dishes on a plate, dishes in a bowl, drinks in a glass), comma-separated
_FAMILIES = {
    "north indian": (
        "North Indian,Punjabi,Mughlai,Awadhi,Lucknowi,Rajasthani,Gujarati,Maharashtrian,Bihari,Bengali,Balti,"
        "Pakistani,Modern Indian,Indian,Kebab,Haleem,Biryani,Hyderabadi,Nepalese,North Eastern,Mithai,Rolls",
        "tandoori chicken,seekh kebab,garlic naan,mutton biryani,stuffed paratha,paneer roll,jalebi",
        "butter chicken,dal makhani,mutton haleem,palak paneer,gulab jamun",
        "sweet lassi,masala chai",
    ),
    "south indian": (
        "South Indian,Dosa,Andhra,Chettinad,Kerala,Goan",
        "masala dosa,ghee roast dosa,medu vada,banana leaf thali,chicken sixty five,appam",
        "sambar,rasam,fish moilee,prawn curry,gongura mutton",
        "filter coffee,buttermilk",
    ),
    "chinese": (
        "Chinese,Cantonese,Sichuan,Dim Sum,Dumplings,Hot Pot,Taiwanese,Mongolian,Noodles,Momos,Tibetan,Asian,"
        "Pan Asian,Asian Fusion",
        "pork dumplings,steamed momos,kung pao chicken,peking duck,char siu bao,scallion pancake,siu mai",
        "hakka noodles,mapo tofu,wonton broth,beef hot pot,fried rice",
        "jasmine tea,bubble tea",
    ),
    "japanese and korean": (
        "Japanese,Sushi,Ramen,Poke,Korean,Hawaiian",
        "salmon sushi,tuna sashimi,chicken katsu,gyoza,korean fried chicken,shrimp tempura,bulgogi",
        "tonkotsu ramen,miso udon,bibimbap,ahi poke,kimchi stew",
        "cold sake,green tea",
    ),
    "southeast asian": (
        "Thai,Vietnamese,Pho,Malaysian,Indonesian,Filipino,Burmese,Cambodian,Laotian",
        "pad thai,summer rolls,chicken satay,nasi goreng,banh mi,papaya salad",
        "beef pho,green curry,tom yum,laksa,coconut khao soi",
        "thai iced tea,fresh coconut water",
    ),
    "middle eastern": (
        "Arabian,Lebanese,Turkish,Iranian,Israeli,Syrian,Egyptian,Moroccan,Armenian,Georgian,Falafel,Shawarma,"
        "Middle Eastern,Halal,Jewish,Kosher,Mediterranean,Greek",
        "chicken shawarma,falafel plate,lamb gyro,baklava,shish tawook,manakish,stuffed vine leaves",
        "hummus,baba ganoush,tabbouleh,lentil stew,lamb tagine",
        "mint tea,turkish coffee",
    ),
    "italian": (
        "Italian,Pizza,Pasta",
        "margherita pizza,pepperoni pizza,lasagna,bruschetta,calzone,tiramisu,veal parmigiana",
        "spaghetti carbonara,penne arrabbiata,mushroom risotto,gnocchi,pesto pasta",
        "house chianti,limoncello",
    ),
    "european": (
        "French,German,Austrian,Swiss,Dutch,Danish,Scandinavian,Polish,Czech,Hungarian,Russian,Belgian,British,"
        "Irish,Spanish,Tapas,Basque,Portuguese,European,Continental,Fondue,Crepes,Bistro,Fine Dining",
        "duck confit,wiener schnitzel,pierogi,steak frites,patatas bravas,shepherds pie,bratwurst,ham crepe",
        "beef goulash,cheese fondue,onion gratinee,seafood paella,borscht",
        "sangria,hot cider",
    ),
    "american": (
        "American,Burger,Hot Dogs,Sandwiches,Diner,Deli,Cheesesteak,Fast Food,Chicken Wings,Family Style,"
        "Food Truck,Wraps,Cafeteria,Buffet,Street Food,Australian",
        "bacon cheeseburger,philly cheesesteak,hot dog,turkey club,buffalo wings,pastrami,chicken wrap",
        "mac and cheese,loaded chili,curly fries,onion rings",
        "root beer float,lemonade",
    ),
    "barbecue and southern": (
        "BBQ,Southern,Soul Food,Cajun,Creole,Steakhouse,Charcoal Grill,Roast Chicken",
        "smoked brisket,pulled pork,baby back ribs,fried chicken,ribeye steak,cornbread,rotisserie chicken",
        "seafood gumbo,jambalaya,shrimp and grits,collard greens,baked beans",
        "sweet tea,bourbon sour",
    ),
    "latin": (
        "Mexican,Tacos,Burrito,Tex-Mex,Latin American,Brazilian,Argentinian,Peruvian,Colombian,Chilean,Cuban,"
        "Caribbean,Jamaican,Dominican,African,Ethiopian",
        "fish tacos,carne asada burrito,chicken enchiladas,empanadas,jerk chicken,churrasco,cubano,injera",
        "guacamole,ceviche,pozole,feijoada,black bean chili",
        "margarita,horchata",
    ),
    "bakery": (
        "Bakery,Desserts,Cupcakes,Donuts,Pastries,Chocolate,Ice Cream,Frozen Yogurt,Waffles,Pancakes,Bagels",
        "red velvet cupcake,glazed donut,belgian waffle,blueberry pancakes,almond croissant,everything bagel,"
        "chocolate cake",
        "salted caramel ice cream,frozen yogurt,bread pudding,chocolate mousse",
        "hot chocolate,vanilla milk",
    ),
    "coffee and brunch": (
        "Cafe,Coffee,Tea House,Juices,Shakes,Smoothies,Beverages,Breakfast,Bruncheria",
        "eggs benedict,avocado toast,breakfast sandwich,blueberry muffin,spinach omelette,french toast",
        "granola,oatmeal,shakshuka",
        "flat white,cold brew,matcha latte,mango smoothie,orange juice,strawberry shake,earl grey tea",
    ),
    "bar": (
        "Pub,Gastropub,Sports Bar,Cocktail Bar,Wine Bar,Bar Food,Finger Food",
        "loaded nachos,mozzarella sticks,sliders,soft pretzel,cheese board,scotch egg",
        "truffle fries,marinated olives,beer cheese dip",
        "craft beer,old fashioned,gin and tonic,pinot noir,espresso martini",
    ),
    "healthy": (
        "Vegan,Vegetarian,Gluten Free,Healthy Food,Salad,Soup",
        "veggie burger,cauliflower steak,grilled tofu,zucchini noodles,beetroot carpaccio",
        "kale salad,quinoa bowl,tomato soup,acai bowl,lentil soup,greek salad",
        "green juice,kombucha",
    ),
    "seafood": (
        "Seafood,Oyster Bar,Crab House,Fish and Chips",
        "raw oysters,grilled salmon,fish and chips,lobster roll,steamed crab legs,fried calamari",
        "clam chowder,mussels in white wine,crab bisque,shrimp boil",
        "crisp white wine,bloody mary",
    ),
}
VESSELS = ("plate", "bowl", "glass")
FAMILIES = tuple(_FAMILIES)
FAMILY_TYPES = {family: tuple(row[0].split(",")) for family, row in _FAMILIES.items()}
DISHES = {
    family: tuple(
        (dish, vessel) for vessel, names in zip(VESSELS, row[1:], strict=True) for dish in names.split(",")
    )
    for family, row in _FAMILIES.items()
}


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


# Index = rating - 1.
FOOD_WORDS = (
    _words(
        "terrible, awful, inedible, horrible, disgusting, dreadful, burnt, rancid, raw in the middle, cold"
    ),
    _words(
        "bland, dry, disappointing, greasy, lukewarm, overcooked, underseasoned, stale, soggy, far too salty"
    ),
    _words(
        "okay, average, so-so, plain, ordinary, forgettable, passable, uneven, a bit dull, nothing special"
    ),
    _words("good, tasty, nice, fresh, flavourful, satisfying, pleasant, well seasoned, very decent, hearty"),
    _words(
        "delicious, superb, wonderful, excellent, fantastic, outstanding, perfect, heavenly, amazing, divine"
    ),
)
SERVICE_WORDS = (
    _words("rude, hostile, careless, chaotic, shockingly slow"),
    _words("slow, inattentive, confused, cold, disorganised"),
    _words("acceptable, average, a little slow, hit and miss, polite but rushed"),
    _words("friendly, quick, attentive, helpful, polite"),
    _words("outstanding, warm and welcoming, wonderful, lightning fast, impeccable"),
)
VERDICTS = (
    _lines("""I want my money back
        Never again
        One of the worst meals I have had
        Stay away from this place
        A complete disaster from start to finish
        I left hungry and angry"""),
    _lines("""Not worth the trip
        I expected a lot more
        We will not hurry back
        A real letdown
        It used to be better
        Too many things went wrong"""),
    _lines("""Nothing to complain about and nothing to remember
        An average experience
        It is fine if you are nearby
        Some hits and some misses
        I might give it one more try
        Decent but there are better options"""),
    _lines("""We had a good time
        I would come back
        A solid choice
        Glad we tried it
        Nice place overall
        A pleasant visit"""),
    _lines("""One of my favourite spots
        I cannot wait to return
        Highly recommended
        Everything was perfect
        Absolutely loved it
        The best meal I have had in months"""),
)
DISH = _lines("""The {dish} tasted {word}
    The {dish} came out {word}
    I ordered the {dish} and found it {word}
    We shared the {dish}, which turned out {word}
    Their {dish} tasted {word} and the {dish2} seemed {word2}
    Tried the {dish}: {word}
    My {dish} looked {word2} and tasted {word}
    Between the {dish} and the {dish2} we found both {word}
    {word}! That is all I can say about the {dish}
    For lunch I had the {dish} and it struck me as {word}
    Had the {dish} on a {day} and it tasted {word}
    In the {time} the {dish} tasted {word}
    {count} of us ate the {dish} and called it {word}""")
KIND = _lines("""For {type} food this place is {word}
    The {type} menu here is {word}
    As {type} places go it felt {word}
    We came for {type} and it was {word}
    They call it {type} and the result is {word}
    The {type} choices were {word}""")
LIKES = _lines("""I could eat {type} every week
    I am a huge fan of {type} and of a good {dish}
    {type} is what I usually look for
    Being crazy about {type} I had to come here
    Give me {type} over anything else
    I am always hunting for the perfect {dish}
    My comfort food is {dish}""")
DISLIKES = _lines("""{type} has never been my thing
    I do not usually care for {type}
    Normally I avoid {type}
    I am not the biggest fan of {dish}
    My friends dragged me here although I rarely enjoy {type}""")
PLACE = _lines("""The service was {word}
    Our waiter was {word}
    The staff at the counter seemed {word}
    Everyone who served us was {word}
    Service on a {day} {time} was {word}
    We went on a {day} and found the staff {word}""")
# Index = price level, cheap to expensive.
PRICE = (
    _lines("""Very cheap for what you get
        Such a bargain, we paid next to nothing
        Budget friendly and filling
        Dirt cheap prices
        You can feed a family of {count} here for little money
        Inexpensive, about {cost} each"""),
    _lines("""Fair prices
        Reasonably priced for the portion size
        Good value at around {cost} each
        The bill for {count} of us was reasonable
        Affordable lunch
        You get what you pay for"""),
    _lines("""A bit pricey at {cost} each
        On the expensive side
        Prices have gone up to {cost} a head
        Not cheap, {count} of us noticed the bill
        Costs more than the neighbours
        A little overpriced for a {day}"""),
    _lines("""Very expensive, {cost} per person
        Overpriced even for a special occasion
        The bill for {count} was shocking
        Bring a fat wallet
        Small portions at luxury prices
        You pay {cost} each for white tablecloths"""),
)
NOISE = _lines("""It rained the whole {day}
    Parking took us {count} tries
    We were {count} people on a {day} {time}
    My cousin picked the place
    The music was playing loudly
    There is a bus stop right outside
    We stopped by on a {day} {time}
    We sat near the window
    I was in town for {count} days
    The table next to us was celebrating a birthday
    Came here after a long drive
    It was about {count} minutes from the hotel
    We had {count} kids with us
    The place was half full on a {day}
    I found it on the map while walking the dog
    They close early on a {day}
    Somebody had left a newspaper on the chair
    The walls are painted {colour}
    Look for the {colour} sign outside
    Our {day} plans had changed at the last minute
    The line was {count} people long
    We ate outside in the {time}
    I wore my {colour} jacket
    The restroom was down the hall
    We talked about work the whole {time}""")
OPENERS = (*[""] * 8, "Honestly, ", "To be fair, ", "As always, ", "This time ", "Well, ", "I must say, ")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = ("morning", "afternoon", "evening", "night")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "brown")

TITLE_FIRST = _words(
    "Golden, Silver, Crimson, Copper, Blue, Green, Old, New, Lucky, Happy, Royal, Little, Grand, Hidden, "
    "Sunny, Rustic, Wild, Gentle, Smoky, Salty, Velvet, Marble, Cedar, Maple, Willow, River, Harbour, "
    "Garden, Corner, Village, Mama, Papa, Uncle, Aunt, Captain, Doctor, Twin, Seven, Midnight, Morning"
)
TITLE_SECOND = _words(
    "Lantern, Spoon, Fork, Kettle, Table, Oven, Pepper, Basil, Olive, Lemon, Saffron, Ginger, Clove, Fig, "
    "Crane, Lion, Fox, Bear, Sparrow, Whale, Anchor, Bridge, Gate, Lamp, Mill, Barn, Porch, Courtyard, "
    "Terrace, Palace"
)
