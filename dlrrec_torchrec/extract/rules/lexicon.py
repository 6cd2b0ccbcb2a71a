"""Words that speak of a type of food or place: what the offline provider knows about categories.

A type's own name always counts in full. `NAMES` adds spellings and names that count in full too, `DISHES`
what makes the type likely (DISH_WEIGHT each), `PHRASES` longer terms whose parts would mislead ("french
fries" is not French food). Terms are matched as whole words, plural or not, longest first.

`PREVALENCE` is the share of reviews, of any restaurant, in which words of a type are expected. The numbers
are fixed on purpose: shares counted on the given reviews would leak each review into its own features.
"""

from __future__ import annotations

DISH_WEIGHT = 0.5

NAMES = {
    "Andhra": "andhra style, telugu, telangana, rayalaseema, rayalseema, guntur",
    "Arabian": "arabic, mandi, mandhi, arab",
    "Asian": "oriental",
    "BBQ": "barbeque, barbecue, barbecued, bbqs, barbeques, bar b q, smokehouse",
    "Bagels": "bagel",
    "Bakery": "baker, bakehouse, patisserie, baked goods",
    "Bar Food": "bar bites, bar snacks, bar menu",
    "Beverages": "beverage, drinks menu, soft drink, cold drink",
    "Biryani": "biriyani, briyani, biriani, bryani, biryanis, biriyanis, dum biryani, biryani rice",
    "Bruncheria": "brunch, brunches",
    "Burger": "hamburger, cheeseburger, burgers",
    "Cafe": "café, coffee shop, coffee house, coffeeshop, cafes",
    "Cafeteria": "canteen",
    "Charcoal Grill": "charcoal, coal grill, live grill, grills",
    "Chicken Wings": "wings, bbq wings, hot wings",
    "Chinese": "indo chinese, china food, schezwan, szechwan style",
    "Cocktail Bar": "cocktail, mocktail bar, mixology, liit",
    "Coffee": "coffees, espresso, cappuccino, cappucino, latte, americano, filter coffee, cold coffee",
    "Crepes": "crepe, creperie",
    "Deli": "delicatessen",
    "Desserts": "dessert, desert, deserts, sweet dish, sundae",
    "Dim Sum": "dimsum, dim sums, dimsums",
    "Donuts": "doughnut, donut",
    "Fast Food": "quick service, junk food",
    "Fine Dining": "fine dine, finedine",
    "Finger Food": "finger foods, appetizer platter",
    "Frozen Yogurt": "froyo, frozen yoghurt",
    "Gluten Free": "gluten-free",
    "Goan": "goa",
    "Healthy Food": "healthy, health food, healthier, nutritious, low calorie, calories, diet food",
    "Hyderabadi": "hyderabad biryani, hyderabadi biryani, nizami",
    "Ice Cream": "icecream, gelato, kulfi, scoop of ice cream",
    "Iranian": "persian, irani",
    "Juices": "juice, fresh juice, fruit juice",
    "Kebab": "kabab, kebob, kabob, kababs, kebabs, tikka kebab, seekh",
    "Kerala": "keralan, malabar, kerela, mallu",
    "Latin American": "latin",
    "Lebanese": "lebanon",
    "Middle Eastern": "middle east",
    "Mithai": "indian sweet, sweet shop, sweet house",
    "Momos": "momo",
    "Mughlai": "moghlai, mughalai, moglai, mughal",
    "Nepalese": "nepali",
    "Noodles": "noodle",
    "North Eastern": "north east, northeast, northeastern, naga, assamese, manipuri",
    "North Indian": "north india, northindian, punjabi food",
    "Pan Asian": "pan-asian",
    "Pastries": "pastry",
    "Pizza": "pizzeria, pizzas",
    "Portuguese": "portugese",
    "Pub": "brewery, microbrewery, brewpub, pubs",
    "Rajasthani": "marwari, rajasthan",
    "Rolls": "kathi roll, kati roll, frankie, egg roll, chicken roll, paneer roll, kathi",
    "Salad": "salads, salad bar, caesar salad",
    "Sandwiches": "sandwich, panini, club sandwich, sub sandwich",
    "Seafood": "sea food, prawn, prawns, fish fry, lobster, squid, calamari, crab, shrimp",
    "Shakes": "milkshake, milk shake, thick shake, thickshake, shake",
    "Shawarma": "shawerma, shwarma, shawarmas, sharma roll",
    "Sichuan": "szechuan, szechwan",
    "Smoothies": "smoothie",
    "South Indian": "south india, southindian",
    "Sports Bar": "live screening, sports screening",
    "Steakhouse": "steak house, steak, steaks",
    "Street Food": "street style, chaat, chat items, roadside, pani puri, golgappa",
    "Tea House": "tea room, teahouse, tea shop",
    "Tex-Mex": "tex mex, texmex",
    "Vegan": "plant based",
    "Vegetarian": "pure veg, veggie only, vegetarians",
    "Waffles": "waffle, waffel",
    "Wraps": "wrap",
}

DISHES = {
    "African": "jollof, fufu, suya, egusi",
    "American": "burger, hot dog, mac and cheese, buffalo wings, chicken wings, fried chicken, steak, "
    "nachos, pancake, onion ring, turkey club, meatloaf, root beer, sloppy joe, loaded chili, clam "
    "chowder",
    "Andhra": "gongura, royyala, royalla, vepudu, natu kodi, pulusu, ragi sangati, gadwal, andhra meal, "
    "ulavacharu, kodi, avakaya, mamsam",
    "Arabian": "kabsa, mandi rice, kunafa, shawarma",
    "Argentinian": "empanada, chimichurri, asado",
    "Asian": "thai curry, dim sum, dimsum, sushi, ramen, stir fry, wok, pad thai, momo, kimchi, bao, "
    "satay, tom yum",
    "Asian Fusion": "fusion, bao",
    "BBQ": "live grill, live barbeque, grill on the table, skewer, rib, brisket, pulled pork, smoked "
    "meat, burnt end, baby back, baked bean, coleslaw, smoked sausage",
    "Bagels": "lox, schmear",
    "Bakery": "cake, pastry, cupcake, bread, puff, croissant, brownie, cookie, muffin, tart, pie, red "
    "velvet, birthday cake, eggless cake",
    "Bar Food": "mozzarella stick, slider, soft pretzel, onion ring, loaded fries, jalapeno popper, "
    "buffalo wings",
    "Beverages": "drink, juice, mocktail, shake, iced tea, ice tea, mojito, lassi, lemonade, tea, chai, "
    "coffee",
    "Biryani": "dum, mirchi ka salan, haleem",
    "Brazilian": "churrasco, feijoada, picanha, caipirinha, pao de queijo",
    "Breakfast": "omelette, omelet, eggs benedict, oatmeal, granola, hash brown, scrambled egg, avocado "
    "toast, bacon and eggs, shakshuka",
    "British": "shepherds pie, cottage pie, scotch egg, bangers and mash, sunday roast, sticky toffee "
    "pudding",
    "Bruncheria": "eggs benedict, avocado toast, mimosa, bloody mary, shakshuka",
    "Burger": "whopper, zinger, patty",
    "Cafe": "coffee, cappuccino, sandwich, hot chocolate, latte, croissant, cheesecake, pancake, waffle",
    "Cajun": "jambalaya, gumbo, crawfish, etouffee, po boy, beignet",
    "Caribbean": "jerk chicken, plantain, oxtail",
    "Chinese": "manchurian, manchuria, chowmein, chow mein, hakka, fried rice, chilli chicken, chilly "
    "chicken, noodle, schezwan, chopsuey, chop suey, hot and sour, spring roll, dragon chicken, dim sum, "
    "kung pao, manchow, sweet and sour, chicken 65, wonton, peking duck, siu mai, mapo "
    "tofu, crispy corn, dumpling, chili chicken, lollipop, chicken lollipop",
    "Cocktail Bar": "margarita, old fashioned, negroni, martini, gin and tonic, bloody mary, whiskey "
    "sour, bourbon, daiquiri, manhattan",
    "Coffee": "brew coffee, mocha, frappe, frappuccino, barista, cold brew, flat white, cortado, macchiato",
    "Continental": "pasta, steak, sizzler, grilled chicken, grilled fish, mashed potato, lasagna, "
    "lasagne, risotto, fish and chips, stroganoff, au gratin, roast, garlic bread, bruschetta, peri peri, "
    "cutlet, saute vegetable, grilled vegetable, chicken breast",
    "Cuban": "cubano, cuban sandwich, ropa vieja",
    "Deli": "pastrami, reuben, corned beef, turkey club, matzo ball",
    "Desserts": "cake, brownie, cheesecake, gulab jamun, ice cream, pastry, tiramisu, pudding, mousse, "
    "kulfi, sundae, waffle, apricot, qubani ka meetha, double ka meetha, gelato, sizzling brownie, "
    "cupcake, red velvet",
    "Ethiopian": "injera, doro wat, berbere, tibs",
    "European": "lasagna, risotto, fondue, schnitzel, bruschetta, pasta, goulash, duck confit, bratwurst, "
    "pierogi, borscht, shepherds pie, hot cider",
    "Fast Food": "burger, french fries, fries, pizza, sandwich, fried chicken, nugget, hot dog, wrap, "
    "zinger, combo meal, drive thru, maggi, popcorn chicken",
    "Filipino": "lumpia, adobo, pancit, sisig",
    "Finger Food": "fries, nachos, finger, nibble, wings, potato wedge, snack, tapas, platter",
    "French": "duck confit, escargot, coq au vin, ratatouille, foie gras, french onion soup, onion "
    "gratinee, bouillabaisse, steak frites, creme brulee, quiche",
    "German": "bratwurst, schnitzel, sauerkraut, spaetzle, currywurst",
    "Goan": "vindaloo, xacuti, bebinca, balchao, recheado, sorpotel",
    "Greek": "gyro, souvlaki, moussaka, spanakopita, tzatziki, dolma",
    "Hawaiian": "poke bowl, spam musubi, loco moco",
    "Healthy Food": "kombucha, smoothie bowl, acai, kale, quinoa, grilled tofu, veggie burger, zucchini "
    "noodle, beetroot, cauliflower steak, granola",
    "Hungarian": "goulash, langos",
    "Hyderabadi": "haleem, pathar ka gosht, double ka meetha, qubani ka meetha, mirchi ka salan, dum "
    "biryani, nihari",
    "Ice Cream": "scoop, sundae, cone, cold stone",
    "Indian": "curry, masala, naan, thali",
    "Indonesian": "nasi goreng, satay, rendang, mie goreng",
    "Italian": "pasta, pizza, lasagna, lasagne, risotto, tiramisu, spaghetti, penne, ravioli, gnocchi, "
    "alfredo, bruschetta, carbonara, fettuccine, arrabiata, arabiata, aglio olio, garlic bread, panna "
    "cotta, pesto, calzone, parmigiana, chicken parm, chianti, limoncello, focaccia, osso buco, cannoli, "
    "antipasto",
    "Jamaican": "jerk chicken, oxtail, ackee",
    "Japanese": "sushi, ramen, teppanyaki, tempura, sashimi, teriyaki, miso, katsu, gyoza, sake, wasabi, "
    "udon, bento",
    "Juices": "fresh fruit, watermelon juice, sugarcane",
    "Kebab": "tikka, tangdi, malai tikka, reshmi, hariyali, skewer, grill, tandoor, seekh kebab, galouti",
    "Kerala": "appam, puttu, kerala parotta, malabar parotta, fish moilee, sadhya",
    "Korean": "kimchi, bibimbap, bulgogi, korean bbq, tteokbokki, japchae, galbi, gochujang",
    "Latin American": "empanada, arepa, ceviche, pupusa, tamale, plantain, black bean, churrasco",
    "Lebanese": "shawarma, hummus, falafel, pita, tabbouleh, baba ganoush, fattoush, toum",
    "Malaysian": "laksa, nasi lemak, satay, roti canai, rendang",
    "Mediterranean": "hummus, pita, falafel, tzatziki, feta, olive, mezze, couscous, moussaka",
    "Mexican": "taco, burrito, nachos, quesadilla, enchilada, fajita, salsa, guacamole, tortilla, churro, "
    "pozole, tamale, horchata, carnitas, al pastor, mole, margarita, elote, chilaquiles",
    "Middle Eastern": "hummus, falafel, shawarma, kebab, pita, baklava, tagine, lentil stew, tahini, "
    "shakshuka, mint tea, lamb tagine",
    "Mithai": "laddu, ladoo, jalebi, rasgulla, rasmalai, barfi, halwa, kaju, gulab jamun, peda, sohan papdi",
    "Modern Indian": "molecular, gastronomy, modern twist, deconstructed, fusion",
    "Moroccan": "tagine, couscous, harira, mint tea",
    "Mughlai": "korma, nihari, rogan josh, butter chicken, seekh kebab, shahi, kurma, handi, rumali, "
    "mughlai biryani",
    "Nepalese": "thukpa, sel roti",
    "Noodles": "chowmein, chow mein, hakka noodle, ramen, udon",
    "North Indian": "paneer, butter chicken, naan, nan, roti, dal, daal, tandoori, tikka, kulcha, "
    "paratha, parantha, rajma, chole, bhature, palak, kadai, kadhai, makhani, makhni, lassi, butter naan, "
    "rumali roti, phulka, malai kofta, butter masala, tikka masala, rogan josh, thali, curry, gravy, "
    "mushroom masala, sabzi, chapati",
    "Pan Asian": "thai curry, sushi, dim sum, bao, wok",
    "Pasta": "spaghetti, penne, lasagna, alfredo, ravioli, fettuccine, carbonara, arrabiata",
    "Peruvian": "ceviche, lomo saltado, pisco sour",
    "Pizza": "margherita, pepperoni, thin crust, cheese burst",
    "Polish": "pierogi, kielbasa, bigos",
    "Pub": "beer, craft beer, dj, dance floor, draught, pitcher",
    "Punjabi": "sarson ka saag, chole bhature, makki ki roti, lassi, amritsari, dhaba",
    "Rajasthani": "dal bati, laal maas, gatte, ker sangri",
    "Roast Chicken": "rotisserie chicken",
    "Russian": "borscht, pelmeni, blini",
    "Salad": "quinoa, lettuce, bowl, green",
    "Seafood": "fish, apollo fish, fish curry, pomfret, salmon, tuna, oyster, mussel, clam, ceviche, "
    "chowder, scallop, crab cake",
    "Shakes": "oreo shake, kitkat shake, ferrero shake",
    "Soul Food": "fried chicken, collard green, cornbread, candied yam, black eyed pea",
    "South Indian": "dosa, idli, idly, vada, sambar, sambhar, uttapam, rasam, upma, pongal, poori, puri, "
    "curd rice, filter coffee, chettinad, appam, parotta, pesarattu, banana leaf, south indian meal, "
    "chicken 65",
    "Southern": "grits, gumbo, cornbread, biscuits and gravy, fried chicken, collard green, sweet tea, "
    "hush puppy, pulled pork, baked bean, bourbon",
    "Spanish": "paella, tapas, sangria, churro, patatas bravas, chorizo",
    "Sports Bar": "big screen, match screening, live match, football match, cricket match",
    "Street Food": "pav bhaji, vada pav, bhel, bhel puri, samosa, dahi puri, sev puri, papdi, tikki, "
    "kachori, momo, dabeli, jhal muri, puchka",
    "Sushi": "sashimi, maki, nigiri, california roll, uramaki",
    "Tapas": "patatas bravas, marinated olive, croqueta, jamon",
    "Tea House": "tea, chai, green tea, irani chai",
    "Thai": "pad thai, tom yum, thai curry, green curry, red curry, som tam, papaya salad, khao, massaman, "
    "lemongrass",
    "Tibetan": "thukpa, momo, tingmo",
    "Turkish": "doner, lahmacun, borek, pide, ayran",
    "Vegan": "tofu, seitan, tempeh",
    "Vietnamese": "pho, banh mi, vietnamese roll",
    "Wine Bar": "pinot noir, cheese board, chianti, cabernet, merlot, chardonnay, white wine, red wine, "
    "charcuterie",
    "Wraps": "tortilla wrap, rolls and wraps",
}

# term -> types it stands for (in full); none: the term says nothing about the food
PHRASES = {
    "american corn": "",
    "american chopsuey": "Chinese",
    "chicken wing": "Chicken Wings",
    "chinese wok": "Chinese",
    "chocolate cake": "Desserts, Bakery",
    "coffee table": "",
    "dry fruit": "",
    "family style": "Family Style",
    "fish and chip": "Fish and Chips",
    "french fry": "Fast Food",
    "french fries": "Fast Food",
    "french toast": "Breakfast",
    "french press": "Coffee",
    "hawaiian pizza": "Pizza",
    "hot dog": "Hot Dogs",
    "ice tea": "Beverages",
    "iced tea": "Beverages",
    "indian team": "",
    "irani chai": "Iranian, Tea House",
    "irish coffee": "Coffee",
    "nail polish": "",
    "noodle soup": "Noodles",
    "roast chicken": "Roast Chicken",
    "russian salad": "Salad",
    "spring roll": "Chinese",
    "summer roll": "Vietnamese",
    "sushi roll": "Sushi",
    "swiss roll": "Bakery",
    "swiss chocolate": "Chocolate",
    "hot chocolate": "Chocolate, Cafe",
}

PREVALENCE_DEFAULT = 0.02
PREVALENCE = {
    **dict.fromkeys(["Desserts", "Beverages", "Finger Food"], 0.12),
    **dict.fromkeys(["Fast Food", "Indian", "Seafood", "Soup", "Buffet"], 0.08),
    **dict.fromkeys(
        ["Pasta", "Salad", "Noodles", "Chocolate", "Biryani", "Ice Cream", "Pizza", "Coffee"], 0.05
    ),
    **dict.fromkeys(["Vegetarian", "Middle Eastern", "Breakfast", "Pub", "Chicken Wings", "Pastries"], 0.04),
}
